"""The published systems, one folder each: config, net, loss, and a README from equation to function."""

"""API prompts for the tests, written out as the page would send them."""

MODEL = "shapes-vdm.safetensors"
TEXT = "a large red star moves left over a dark blue background"


def node(kind, /, **inputs):
    return {"class_type": kind, "inputs": inputs}


def loaded(text=TEXT, model=MODEL, width=32, height=32, frames=8, batch=1):
    """Model, two prompts and an empty clip: nodes 1 to 4."""
    return {
        "1": node("LoadVideoModel", model_name=model),
        "2": node("CLIPTextEncode", clip=["1", 1], text=text),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("EmptyVideoLatent", width=width, height=height, frames=frames, batch_size=batch),
    }


def sample(model=("1", 0), positive=("2", 0), negative=("3", 0), latent=("4", 0), **inputs):
    values = dict(seed=1, steps=4, guidance_scale=3.0, sampler="ddim", schedule="uniform_time") | inputs
    return node(
        "SampleVideo",
        model=list(model),
        positive=list(positive),
        negative=list(negative),
        latent_image=list(latent),
        **values,
    )


def keep_latent(source, prefix="latents/test"):
    return node("SaveLatent", samples=[source, 0], filename_prefix=prefix)


def sampled(prompt, models, **how):
    """Samples with each MODEL, and keeps what came under its number and a k."""
    for number in models:
        prompt |= {
            f"{number}s": sample(model=(number, 0), **how),
            f"{number}k": keep_latent(f"{number}s", f"latents/{number}"),
        }
    return prompt


def to_video(source, rate=8, prefix="video/test"):
    """Decode and save what node ``source`` sampled: nodes 20 to 22."""
    return {
        "20": node("VAEDecode", samples=[source, 0], vae=["1", 2]),
        "21": node("CreateVideo", images=["20", 0], fps=rate),
        "22": node("SaveVideo", video=["21", 0], filename_prefix=prefix, format="mp4", codec="h264"),
    }

"""ComfyUI-VidCore: five published video-diffusion systems as ComfyUI nodes. See README.md."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import VidCore

    return VidCore()

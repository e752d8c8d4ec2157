"""Image inpainting with partial convolutions (Liu et al. 2018): the library of a course in notebooks.

The names below can be imported from here; each is loaded from its own module when it is first used, so that
`import pconv_course` stays light and `PartialConv2d` needs torch alone."""
__version__ = "0.1.0"

_homes = dict(PartialConv2d="pconv", partial_conv2d="pconv", MaskBank="masks", face_dls="data", PConvUNet="unet", build_unet="networks",
              InpaintLoss="objective", pconv_learner="learner", Recipe="recipe", train="runs.train", evaluate="evaluation",
              inpaint="inpainting", load_model="weights", load_pretrained="weights")


def __getattr__(name):
    if name not in _homes: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"{__name__}.{_homes[name]}"), name)


def __dir__(): return [*globals(), *_homes]

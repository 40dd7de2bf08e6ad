"""Configuration: pydantic models (`schema`) and how a file becomes one (`load`). Imports no torch."""

from distwsss.config.load import load_config
from distwsss.config.schema import Config

__all__ = ["Config", "load_config"]

"""Builds the package with `configs/` inside it, which has its only copy at the top of the repository (setup.cfg has all
else): what is installed knows `--config voc12/deeplab_v2` and `--profile rtx3090` from any folder."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # there `distwsss.config.load` finds them where they are
            target = Path(self.build_lib, "distwsss", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("configs", target)


setup(cmdclass={"build_py": BuildWithConfigs})

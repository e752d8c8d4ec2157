import os
import tempfile

# Caches of faces that a test makes go here, never into the user's own cache folder.
os.environ.setdefault("PCONV_CACHE", tempfile.mkdtemp(prefix="pconv_cache_"))


def pytest_configure(config):
    config.addinivalue_line("markers", "dev: needs the dev extra (nbdev, ruff, jupyter); deselected with the newest runtime set")
    config.addinivalue_line("markers", "browser: needs Chromium and the browser extra; run by `make test-browser`")
    config.addinivalue_line("markers", "slow: a minute or more, such as a compiler for C++")

def pytest_configure(config):
    config.addinivalue_line("markers", "dev: needs the dev extra (nbdev, ruff, jupyter); deselected with the newest runtime set")

"""Networks that come with the library: small backbones sized for the embedded models and for tests."""

from hypothesis import settings

settings.register_profile("keyturn", deadline=None, max_examples=60)
settings.load_profile("keyturn")

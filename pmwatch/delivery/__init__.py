"""From a settled file to done: claim, presign, PUT, verify, dispose."""

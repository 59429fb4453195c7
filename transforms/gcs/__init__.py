"""Google Cloud Storage behind `transforms.store.Store`; imported when a gs:// address is used."""

"""Studies: models, data, balls and components run into a store of records, which can be audited and reported."""

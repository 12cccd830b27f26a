"""What every work queue keeps, run against RabbitMQ and the PostgreSQL tables."""

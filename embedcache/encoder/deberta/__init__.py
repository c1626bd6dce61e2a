"""DeBERTa without padding: the only place that knows its inside."""

"""What everything stands on: errors, settings, random draws, durable files, strict JSON, text fit to show."""

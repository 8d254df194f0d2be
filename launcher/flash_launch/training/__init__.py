"""What trains: Flash's Trainer over Lightning's."""

"""What travels between the steps: records, requests, answers, dead letters, and their coders."""

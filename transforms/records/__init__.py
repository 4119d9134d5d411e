"""The elements between steps: records, requests, answers, dead letters, and their coders."""

"""OpenAI's API: requests in its shapes to jobs, and answers back."""

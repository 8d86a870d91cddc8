"""What is answered under which path; each file is one group of routes."""

"""What the swap to ReLU costs on real data, and what hardening, bias correction and recovery give back. See run.py."""

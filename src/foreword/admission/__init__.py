"""From waiting to running: the desk at which a policy meets the prefix tree. No tensors."""

from foreword.admission._desk import Desk, Guest

__all__ = ["Desk", "Guest"]

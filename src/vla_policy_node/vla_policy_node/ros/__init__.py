"""Helpers that every node of the suite shares: running a node, its QoS profiles, its lifecycle, its parameters."""

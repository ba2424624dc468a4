"""Small things that every node of the suite shares: how it runs, its QoS profiles, its lifecycle, its parameters."""

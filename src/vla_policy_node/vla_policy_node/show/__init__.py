"""What people look at: text, paths, traces and pictures of what the policy intends, beside the policy and not in it."""

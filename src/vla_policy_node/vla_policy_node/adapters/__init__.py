"""What turns set-points into the messages of one controller or gripper. One small file each."""

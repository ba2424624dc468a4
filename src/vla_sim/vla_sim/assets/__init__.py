"""Parts of the MuJoCo model: arm, props, meshes, colours."""

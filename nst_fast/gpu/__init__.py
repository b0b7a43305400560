"""All that a GPU alone needs: CuPy, providers, sessions, kernels, Plan, optimisers and loop."""

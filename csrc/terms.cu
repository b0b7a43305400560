// The terms of a fused step, whose graph gives them in float32 and without their weights.
// Compiled behind device.cuh.

NST_KERNEL void weigh_terms(const float* terms, const double* factors, double* weighted, int count)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) weighted[i] = factors[i] * terms[i];
}

// Kernels that try the shim itself.

NST_KERNEL void reverse_block(const float* in, float* out, int count)
{
    __shared__ float kept[64];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    kept[threadIdx.x] = i < count ? in[i] : 0;
    __syncthreads();
    out[i] = kept[blockDim.x - 1 - threadIdx.x];
}

NST_KERNEL void sum_blocks(const float* in, double* out)
{
    __shared__ double scratch[32];
    const double sum = block_sum(in[blockIdx.x * blockDim.x + threadIdx.x], scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

NST_KERNEL void leave_early(float* out)
{
    if (threadIdx.x == 40) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

NST_KERNEL void split_warp(float* out)
{
    if (threadIdx.x < 16) out[threadIdx.x] = warp_sum(1.0f);
    __syncthreads();
}

NST_KERNEL void forget_barrier(float* out)
{
    __shared__ float kept[64];
    kept[threadIdx.x] = 1;
    out[threadIdx.x] = kept[63 - threadIdx.x];
}

NST_KERNEL void write_outside(float* out, int count)
{
    out[count] = 1;
}

NST_KERNEL void forget_copy(const float* in, float* out)
{
    __shared__ __align__(16) float kept[4];
    copy_async(kept, in, true);
    commit_copies();
    wait_for_copies<1>();
    out[threadIdx.x % 4] = kept[threadIdx.x % 4];
}

NST_KERNEL void convert(const float* in, unsigned short* half, unsigned short* bfloat, int count)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    half[i] = float_to_half(in[i]);
    bfloat[i] = float_to_bfloat(in[i]);
}

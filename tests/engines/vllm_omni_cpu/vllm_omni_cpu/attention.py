"""The decoder's attention: torch's scaled_dot_product_attention, which vLLM-Omni has for named devices only."""

from vllm_omni.diffusion.attention.backends.sdpa import SDPABackend, SDPAImpl


class CpuAttentionImpl(SDPAImpl):
    def forward(self, query, key, value, attn_metadata=None):
        return self._forward_impl(query, key, value, attn_metadata)


class CpuAttention(SDPABackend):
    @staticmethod
    def get_impl_cls():
        return CpuAttentionImpl

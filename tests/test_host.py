"""What the host lends: numpy's threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_info

from nst_fast.host import one_blas_thread


def blas_threads() -> set[int]:
    """Of numpy's library; that of scipy is another one, loaded when somebody needs it."""
    found = (pool for pool in threadpool_info() if pool["user_api"] == "blas")
    return {pool["num_threads"] for pool in found if "numpy" in pool["filepath"]}


def test_numpy_gets_its_threads_back():
    before = blas_threads()
    assert before
    with one_blas_thread():
        assert blas_threads() == {1}
        with ThreadPoolExecutor(1) as pool:  # whoever comes second leaves them as they are
            pool.submit(one_blas_thread().__enter__).result()
    assert blas_threads() == before

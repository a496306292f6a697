#pragma once

#include <chrono>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

// Whether libtorch's CUDA half is loaded and has NCCL as this code knows it.
bool has_nccl();

// The collectives of `size` GPUs, one in each process, that meet at `store`.
c10::intrusive_ptr<c10d::Backend> join_gpus(const c10::intrusive_ptr<c10d::Store> &store, int rank, int size,
                                            std::chrono::milliseconds timeout);

// c10d, PyTorch's engine of distributed training: its key-value store over TCP, and collectives over gloo and NCCL.

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "../model/guarded.h"
#include "nccl.h"

namespace {

using Store = c10::intrusive_ptr<c10d::Store>;
using Group = c10::intrusive_ptr<c10d::Backend>;

std::vector<uint8_t> bytes_of(const uint8_t *bytes, size_t length) { return {bytes, bytes + length}; }

} // namespace

extern "C" {

void shipreid_c10d_free(void *memory) { free(memory); }

// Serves a store on a listening socket, which it takes over. c10d itself would listen on every interface.
char *shipreid_store_serve(int socket, const char *host, uint16_t port, Store **store) {
    return guarded([&] {
        c10d::TCPStoreOptions options;
        options.port = port;
        options.masterListenFd = socket;
        options.isServer = true;
        options.waitWorkers = false;
        *store = new Store(c10::make_intrusive<c10d::TCPStore>(host, options));
    });
}

char *shipreid_store_connect(const char *host, uint16_t port, int64_t timeout_ms, Store **store) {
    return guarded([&] {
        c10d::TCPStoreOptions options;
        options.port = port;
        options.waitWorkers = false;
        options.timeout = std::chrono::milliseconds(timeout_ms);
        *store = new Store(c10::make_intrusive<c10d::TCPStore>(host, options));
    });
}

// The same store over a connection of its own, with `prefix` before every key.
char *shipreid_store_prefixed(const Store *store, const char *prefix, Store **prefixed) {
    return guarded([&] {
        *prefixed = new Store(c10::make_intrusive<c10d::PrefixStore>(prefix, (*store)->clone()));
    });
}

void shipreid_store_drop(Store *store) { delete store; }

char *shipreid_store_set(const Store *store, const char *key, const uint8_t *value, size_t length) {
    return guarded([&] { (*store)->set(key, bytes_of(value, length)); });
}

// Sets a key that has no value yet; `value` becomes the value that the key has afterwards.
char *shipreid_store_set_once(const Store *store, const char *key, const uint8_t *value, size_t length, uint8_t **found,
                              size_t *found_length) {
    return guarded([&] {
        auto result = (*store)->compareSet(key, std::vector<uint8_t>{}, bytes_of(value, length));
        *found = static_cast<uint8_t *>(malloc(result.size() + 1));
        memcpy(*found, result.data(), result.size());
        *found_length = result.size();
    });
}

// Waits for a key until `timeout_ms` have passed, and writes its value, to be freed with shipreid_c10d_free.
char *shipreid_store_get(const Store *store, const char *key, int64_t timeout_ms, uint8_t **value, size_t *length) {
    return guarded([&] {
        (*store)->wait({key}, std::chrono::milliseconds(timeout_ms));
        auto result = (*store)->get(key);
        *value = static_cast<uint8_t *>(malloc(result.size() + 1));
        memcpy(*value, result.data(), result.size());
        *length = result.size();
    });
}

char *shipreid_store_has(const Store *store, const char *key, bool *has) {
    return guarded([&] { *has = (*store)->check({key}); });
}

char *shipreid_store_add(const Store *store, const char *key, int64_t amount, int64_t *sum) {
    return guarded([&] { *sum = (*store)->add(key, amount); });
}

// Joins the processes that meet at `store`. The device is the network interface named `interface`, or the one that
// has the address `address`.
char *shipreid_group_join(const Store *store, int rank, int size, const char *interface, const char *address,
                          int64_t timeout_ms, Group **group) {
    return guarded([&] {
        auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(timeout_ms));
        options->devices.push_back(interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                             : c10d::ProcessGroupGloo::createDeviceForHostname(address));
        *group = new Group(c10::make_intrusive<c10d::ProcessGroupGloo>(*store, rank, size, options));
    });
}

bool shipreid_has_nccl() { return has_nccl(); }

// Joins the GPUs of processes that meet at `store`. Each process uses that of its tensors.
char *shipreid_group_join_gpus(const Store *store, int rank, int size, int64_t timeout_ms, Group **group) {
    return guarded([&] { *group = new Group(join_gpus(*store, rank, size, std::chrono::milliseconds(timeout_ms))); });
}

void shipreid_group_drop(Group *group) { delete group; }

// Replaces a tensor by its sum over the ranks.
char *shipreid_group_sum(const Group *group, const at::Tensor *tensor) {
    return guarded([&] {
        std::vector<at::Tensor> tensors{*tensor};
        (*group)->allreduce(tensors)->wait();
    });
}

// Replaces a tensor by that of rank 0.
char *shipreid_group_broadcast(const Group *group, const at::Tensor *tensor) {
    return guarded([&] {
        std::vector<at::Tensor> tensors{*tensor};
        (*group)->broadcast(tensors)->wait();
    });
}

// Every rank's tensor, in their order: [N] -> [ranks, N].
char *shipreid_group_gather(const Group *group, const at::Tensor *tensor, at::Tensor **all) {
    return guarded([&] {
        std::vector<at::Tensor> input{*tensor};
        std::vector<std::vector<at::Tensor>> outputs(1);
        for (int rank = 0; rank < (*group)->getSize(); ++rank)
            outputs[0].push_back(at::empty_like(*tensor));
        (*group)->allgather(outputs, input)->wait();
        *all = new at::Tensor(at::stack(outputs[0]));
    });
}

}

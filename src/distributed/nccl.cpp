// NCCL, c10d's collectives between GPUs.
//
// Its class is in libtorch's CUDA half, which is loaded when the program runs and not linked, so that one program runs with
// and without it; and its header needs those of CUDA and NCCL, which libtorch lacks. So its two constructors are looked up
// by their names, and everything else goes through the virtual functions of `c10d::Backend`.

#include "nccl.h"

#include <new>

#include <dlfcn.h>

namespace {

using Store = c10::intrusive_ptr<c10d::Store>;
using Options = c10::intrusive_ptr<c10d::Backend::Options>;

// Both are pointers to one object, and are passed alike whatever class it has.
using NewOptions = void (*)(void *self, bool high_priority);
using NewGroup = void (*)(void *self, Store store, int rank, int size, Options options);

constexpr const char *NEW_OPTIONS = "_ZN4c10d16ProcessGroupNCCL7OptionsC1Eb";
constexpr const char *NEW_GROUP =
    "_ZN4c10d16ProcessGroupNCCLC1EN3c1013intrusive_ptrINS_5StoreENS1_6detail34intrusive_target_default_null_"
    "typeIS3_EEEEiiNS2_INS0_7OptionsENS5_IS8_EEEE";

// More than either object takes: in libtorch 2.13.0 a group takes 1,152 bytes, and options fewer.
constexpr size_t OBJECT_BYTES = 16384;

template <typename Function> Function find(const char *name) {
    return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

// An object that `construct` makes in fresh memory, which the object's own destructor gives back.
template <typename Base, typename Construct> c10::intrusive_ptr<Base> make(const Construct &construct) {
    void *memory = ::operator new(OBJECT_BYTES);
    try {
        construct(memory);
    } catch (...) {
        ::operator delete(memory);
        throw;
    }
    return c10::intrusive_ptr<Base>::unsafe_steal_from_new(static_cast<Base *>(memory));
}

} // namespace

bool has_nccl() { return find<NewOptions>(NEW_OPTIONS) && find<NewGroup>(NEW_GROUP); }

c10::intrusive_ptr<c10d::Backend> join_gpus(const Store &store, int rank, int size, std::chrono::milliseconds timeout) {
    TORCH_CHECK(has_nccl(), "libtorch's CUDA half is not loaded, or has another NCCL");
    auto options = make<c10d::Backend::Options>([](void *memory) { find<NewOptions>(NEW_OPTIONS)(memory, false); });
    options->timeout = timeout;
    return make<c10d::Backend>(
        [&](void *memory) { find<NewGroup>(NEW_GROUP)(memory, store, rank, size, options); });
}

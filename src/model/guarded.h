// How the shim's functions report what went wrong: null, or a message to be freed with shipreid_free.

#pragma once

#include <cstring>

#include <c10/util/Exception.h>

template <typename Work>
char *guarded(Work &&work) {
    try {
        work();
        return nullptr;
    } catch (const c10::Error &error) {
        return strdup(error.what_without_backtrace());
    } catch (const std::exception &error) {
        return strdup(error.what());
    }
}

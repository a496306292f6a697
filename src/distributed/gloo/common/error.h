// libtorch has gloo's code, but not its headers. What c10d's headers name of it is declared here; nothing of it is
// called or laid out by our code.
#pragma once

#!/usr/bin/env python3
"""Times FAISS for benches/gallery: exact search in f32 (IndexFlatIP) and in 8 bits (IndexScalarQuantizer).

Arguments: entries, numbers of a vector, k. For every line "flat|sq8 THREADS SEARCHES" on standard input it prints a
list of seconds, one a search: processor time on one thread, else time on the wall.
"""

import json
import sys
import time

import faiss
import numpy

PART = 50_000


def main():
    entries, dimension, k = map(int, sys.argv[1:])
    random = numpy.random.default_rng(1)
    indexes = {
        "flat": faiss.IndexFlatIP(dimension),
        "sq8": faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT),
    }
    indexes["sq8"].train(units(random, min(entries, PART), dimension))
    for start in range(0, entries, PART):
        vectors = units(random, min(PART, entries - start), dimension)
        for index in indexes.values():
            index.add(vectors)
    for line in sys.stdin:
        kind, threads, searches = line.split()
        faiss.omp_set_num_threads(int(threads))
        clock = time.thread_time if threads == "1" else time.perf_counter
        queries = units(random, int(searches), dimension)
        print(json.dumps([seconds(clock, indexes[kind], query[None], k) for query in queries]), flush=True)


def units(random, count, dimension):
    vectors = random.standard_normal((count, dimension), dtype=numpy.float32)
    faiss.normalize_L2(vectors)
    return vectors


def seconds(clock, index, query, k):
    start = clock()
    index.search(query, k)
    return clock() - start


if __name__ == "__main__":
    main()

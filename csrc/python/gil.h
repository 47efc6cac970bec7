// Work without the GIL, safe in threads that are still running when the interpreter exits.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>
#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace pqk::python {

// CPython ends a daemon thread that asks for the GIL after the interpreter has gone by unwinding its stack,
// which C++ frames do not survive (a destructor on the way ends the process). Such a thread sleeps here until
// the process exits, as later versions of CPython let it.
inline void take_gil(PyThreadState* state) {
#if defined(__GLIBCXX__)
  try {
    PyEval_RestoreThread(state);
  } catch (const abi::__forced_unwind&) {
    while (true) std::this_thread::sleep_for(std::chrono::hours(1));
  }
#else
  PyEval_RestoreThread(state);
#endif
}

// Calls `body` with the GIL released.
template <class Body>
void without_gil(const Body& body) {
  PyThreadState* const state = PyEval_SaveThread();
  try {
    body();
  } catch (...) {
    take_gil(state);
    throw;
  }
  take_gil(state);
}

}  // namespace pqk::python

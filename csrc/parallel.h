// Running one function on several threads.
#pragma once

namespace fw {

// Call `enter(data)` on `threads` threads at once, this one among them, and wait for all.
void parallel(int threads, void (*enter)(void *), void *data);

}  // namespace fw

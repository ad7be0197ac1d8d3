// The threads of the benchmark.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace pom::cpu {

// Threads that spin between calls, since the cost of waking a sleeping thread is not the kernel's.
class Pool {
 public:
  explicit Pool(int threads) : size_(threads) {
    for (int i = 1; i < threads; ++i) {
      workers_.emplace_back([this, i] { work(i); });
    }
  }
  ~Pool() {
    stopping_ = true;
    begin();
    for (std::thread& worker : workers_) {
      worker.join();
    }
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  [[nodiscard]] int size() const { return size_; }

  void run(const std::function<void(int)>& function) {
    function_ = &function;
    busy_.store(size_ - 1, std::memory_order_relaxed);
    begin();
    function(0);
    while (busy_.load(std::memory_order_acquire) != 0) {
    }
  }

 private:
  void begin() { call_.fetch_add(1, std::memory_order_release); }
  void work(int index) {
    for (int seen = 0;; ++seen) {
      while (call_.load(std::memory_order_acquire) == seen) {
      }
      if (stopping_) {
        return;
      }
      (*function_)(index);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int size_;
  bool stopping_ = false;
  const std::function<void(int)>* function_ = nullptr;
  std::atomic<int> call_{0};
  std::atomic<int> busy_{0};
  std::vector<std::thread> workers_;
};

}  // namespace pom::cpu

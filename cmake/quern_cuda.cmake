# QUERN_CUDA=AUTO|ON|OFF: whether nvcc builds the GPU's backend. Sets QUERN_CUDA_FOUND. The libraries of the toolkit are
# looked for when the program runs (compute/cuda), never linked.
set(QUERN_CUDA "AUTO" CACHE STRING "Build the CUDA backend: AUTO (where nvcc is), ON or OFF")
set(QUERN_CUDA_FOUND FALSE)
if(NOT QUERN_CUDA STREQUAL "OFF" AND NOT QUERN_SANITIZE)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # 8.0, and 9.0 with what only Hopper has; anything newer compiles the PTX of 9.0 when it starts.
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
    enable_language(CUDA)
    if(CMAKE_CXX_COMPILER_LAUNCHER AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
    endif()
    # CMake 3.25 does not know that this nvcc has C++20.
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    find_package(CUDAToolkit REQUIRED)
    set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
    set(QUERN_CUDA_FOUND TRUE)
  elseif(QUERN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "QUERN_CUDA=ON and no nvcc: set CMAKE_CUDA_COMPILER or PATH")
  endif()
endif()

# The kernels: for the GPU (compute/cuda) and for the emulator (tests/cuda).
set(QUERN_CUDA_KERNELS
  adamw.cu attention.cu attention_backward.cu attention_backward_tiles.cu attention_tiles.cu draw.cu elementwise.cu norm.cu pruning.cu
  quantize.cu reduce.cu rotary.cu selection.cu softmax.cu)

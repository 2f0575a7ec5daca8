# What the cuda backend is built from: nvcc, cuDNN 9 and NCCL, all or none.
#
# Sets RINGMASTER_HAVE_CUDA and RINGMASTER_CUDA_SUMMARY, and the targets ringmaster_cudart (the
# static CUDA runtime), ringmaster_cudnn and ringmaster_nccl. Where a part is not found in the
# toolkit's folders, CUDNN_ROOT and NCCL_ROOT say where it is.
set(RINGMASTER_HAVE_CUDA OFF)
set(RINGMASTER_CUDA_SUMMARY OFF)
if(RINGMASTER_CUDA STREQUAL "OFF")
  return()
endif()

# The toolkit first: an older nvcc refuses the architectures below when its language is enabled.
find_package(CUDAToolkit 12.8 QUIET) # the first that knows sm_100
set(cuda_missing "")
if(NOT CUDAToolkit_FOUND)
  list(APPEND cuda_missing "CUDA toolkit 12.8 or later")
endif()
if(CUDAToolkit_FOUND)
  find_path(CUDNN_INCLUDE_DIR cudnn_graph.h HINTS ${CUDNN_ROOT} ${CUDAToolkit_INCLUDE_DIRS}
    PATH_SUFFIXES include)
  find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9 HINTS ${CUDNN_ROOT}
    ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${NCCL_ROOT} ${CUDAToolkit_INCLUDE_DIRS}
    PATH_SUFFIXES include)
  find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${NCCL_ROOT} ${CUDAToolkit_LIBRARY_DIR}
    PATH_SUFFIXES lib lib64)
  foreach(part CUDNN NCCL)
    if(NOT ${part}_INCLUDE_DIR OR NOT ${part}_LIBRARY)
      list(APPEND cuda_missing ${part})
    endif()
  endforeach()
endif()

if(cuda_missing)
  string(REPLACE ";" ", " cuda_missing "${cuda_missing}")
  if(RINGMASTER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "RINGMASTER_CUDA=ON, but not found: ${cuda_missing} (CUDNN_ROOT and "
      "NCCL_ROOT may say where they are)")
  endif()
  set(RINGMASTER_CUDA_SUMMARY "OFF (no ${cuda_missing})")
  return()
endif()

# A release is built for the GPUs that the design names, with PTX of the newest for later ones.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90-real;100")
endif()
if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
endif()
enable_language(CXX)
enable_language(CUDA)
set(RINGMASTER_HAVE_CUDA ON)
set(RINGMASTER_CUDA_SUMMARY "ON ${CUDAToolkit_VERSION}")
add_library(ringmaster_cudart INTERFACE)
target_link_libraries(ringmaster_cudart INTERFACE CUDA::cudart_static)
add_library(ringmaster_cudnn INTERFACE)
target_include_directories(ringmaster_cudnn SYSTEM INTERFACE ${CUDNN_INCLUDE_DIR})
target_link_libraries(ringmaster_cudnn INTERFACE ${CUDNN_LIBRARY})
add_library(ringmaster_nccl INTERFACE)
target_include_directories(ringmaster_nccl SYSTEM INTERFACE ${NCCL_INCLUDE_DIR})
target_link_libraries(ringmaster_nccl INTERFACE ${NCCL_LIBRARY})

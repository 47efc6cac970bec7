# Finds the torch of the building Python: sets PQK_TORCH_ROOT and PQK_TORCH_VERSION, or leaves them empty.
# find_package(Torch) is not used: only headers and libtorch_cpu are needed, and on a CUDA build of torch it asks
# for a whole toolkit.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
          "import importlib.util as u, pathlib as p; s = u.find_spec('torch'); r = p.Path(s.origin).parent; v = {}; exec((r / 'version.py').read_text(), v); print(f\"{r};{v['__version__']}\")"
  OUTPUT_VARIABLE pqk_torch
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET)
list(LENGTH pqk_torch pqk_torch_parts)
if(pqk_torch_parts EQUAL 2)
  list(GET pqk_torch 0 PQK_TORCH_ROOT)
  list(GET pqk_torch 1 PQK_TORCH_VERSION)
endif()

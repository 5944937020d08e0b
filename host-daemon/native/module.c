// SPDX-License-Identifier: Apache-2.0
/* The module farwatchd._native; _native.pyi has its types. */
#include "native.h"

PyTypeObject *ring_type;

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1};

PyMODINIT_FUNC PyInit__native(void)
{
	PyObject *result = PyModule_Create(&module), *plain = PyType_FromSpec(&plain_spec);
	ring_type = (PyTypeObject *)PyType_FromSpec(&ring_spec);
	make_crc_table();
	if (!intern_names() || PyErr_Occurred() || PyModule_AddType(result, ring_type) ||
	    PyModule_AddType(result, (PyTypeObject *)plain))
		return NULL;
	return result;
}

//! Whether bytes start a plaintext HTTP conversation (LIS-19, LIS-24).

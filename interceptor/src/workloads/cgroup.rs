//! Control groups (v2): finding the hierarchy, making, filling and emptying one.

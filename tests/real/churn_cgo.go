// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package main

// __attribute__((noipa)) int work(int x) { return x * 5 + 3; }
import "C"

func call(n int) int { return int(C.work(C.int(n))) }

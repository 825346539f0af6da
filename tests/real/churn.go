// SPDX-License-Identifier: Apache-2.0

// A Go program that checks its own results: goroutines come and go on stacks that grow, are
// preempted by signals and collected; with cgo they call a traced C function. Prints a line of
// rounds and wrong results every 100 ms, for ever.
package main

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

var rounds, wrong atomic.Uint64

func deep(n int) int {
	var room [64]int
	room[n%64] = n
	if n == 0 {
		return 0
	}
	return deep(n-1) + 1 + room[(n+1)%64]
}

func round(n int) {
	kept := make([][]byte, 0, 16)
	for i := 0; i < 16; i++ {
		kept = append(kept, make([]byte, 1024))
	}
	if deep(300) != 300 || len(kept) != 16 || call(n) != n*5+3 {
		wrong.Add(1)
	}
	rounds.Add(1)
}

func main() {
	go func() {
		for {
			var all sync.WaitGroup
			for i := 0; i < 50; i++ {
				all.Add(1)
				go func(n int) { defer all.Done(); round(n) }(i)
			}
			all.Wait()
			runtime.Gosched()
		}
	}()
	for {
		time.Sleep(100 * time.Millisecond)
		fmt.Println(rounds.Load(), wrong.Load())
	}
}

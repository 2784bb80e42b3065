// Command kvcluster-porcupine reads operations on the keys of a store, a JSON object per line, and says of each key whether
// its operations are linearizable: one JSON object per line, with result Ok, Illegal or Unknown (not known in time).
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// Longest check of one key.
const keyLimit = 60 * time.Second

// One line of the input. Exactly one of the fields of step is there; null in it means: no such key.
type operation struct {
	Client int                         `json:"client"`
	Key    string                      `json:"key"`
	Step   map[string]*json.RawMessage `json:"step"`
	Call   int64                       `json:"call"`
	Return *int64                      `json:"return"`
}

type step struct {
	isWrite bool
	value   value
}

// A value, or none.
type value struct {
	exists bool
	text   string
}

var model = porcupine.Model{
	Init: func() interface{} { return value{} },
	Step: func(state, input, _ interface{}) (bool, interface{}) {
		step := input.(step)
		if step.isWrite {
			return true, step.value
		}
		return state.(value) == step.value, state
	},
}

func main() {
	if len(os.Args) != 2 {
		fail(fmt.Errorf("usage: %s FILE", os.Args[0]))
	}
	keys, err := read(os.Args[1])
	if err != nil {
		fail(err)
	}
	names := make([]string, 0, len(keys))
	for name := range keys {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		result := porcupine.CheckOperationsTimeout(model, keys[name], keyLimit)
		line, err := json.Marshal(map[string]string{"key": name, "result": string(result)})
		if err != nil {
			fail(err)
		}
		fmt.Println(string(line))
	}
}

func read(path string) (map[string][]porcupine.Operation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	keys := make(map[string][]porcupine.Operation)
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var line operation
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, err
		}
		input, err := parse(line.Step)
		if err != nil {
			return nil, err
		}
		returned := int64(math.MaxInt64)
		if line.Return != nil {
			returned = *line.Return
		}
		keys[line.Key] = append(keys[line.Key], porcupine.Operation{
			ClientId: line.Client, Input: input, Call: line.Call, Return: returned,
		})
	}
	return keys, lines.Err()
}

func parse(fields map[string]*json.RawMessage) (step, error) {
	for name, raw := range fields {
		if name != "read" && name != "write" || len(fields) != 1 {
			break
		}
		parsed := step{isWrite: name == "write"}
		if raw != nil {
			parsed.value.exists = true
			if err := json.Unmarshal(*raw, &parsed.value.text); err != nil {
				return step{}, err
			}
		}
		return parsed, nil
	}
	return step{}, fmt.Errorf("a step is {\"read\": …} or {\"write\": …}, not %v", fields)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

"""The Go program of `python -m clients.examples`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_PROGRAM = """\
// Asks the cascade for the best items of two users by JSON over HTTP: go run main.go
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"time"
)

const url = "http://127.0.0.1:8000/v2/models/@MODEL@/infer"

var client = http.Client{Timeout: time.Second}

type tensor struct {
	Name     string          `json:"name"`
	Shape    []int           `json:"shape"`
	Datatype string          `json:"datatype"`
	Data     json.RawMessage `json:"data"`
}

// texts is an input of one JSON text for each user.
func texts(name string, values []any) (tensor, error) {
	made := make([]string, len(values))
	for user, value := range values {
		text, err := json.Marshal(value)
		if err != nil {
			return tensor{}, err
		}
		made[user] = string(text)
	}
	data, err := json.Marshal(made)
	return tensor{name, []int{len(values), 1}, "BYTES", data}, err
}

// recommend gives the items and scores of each user, best first; @PAD@ fills a short list.
func recommend(inputs map[string][]any) (ids [][]@ID@, scores [][]float32, err error) {
	var request struct {
		Inputs []tensor `json:"inputs"`
	}
	for name, values := range inputs {
		input, err := texts(name, values)
		if err != nil {
			return nil, nil, err
		}
		request.Inputs = append(request.Inputs, input)
	}
	body, err := json.Marshal(request)
	if err != nil {
		return nil, nil, err
	}
	answer, err := client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	var found struct {
		Error   string   `json:"error"`
		Outputs []tensor `json:"outputs"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&found); err != nil {
		return nil, nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("status %d: %s", answer.StatusCode, found.Error)
	}
	for _, output := range found.Outputs {
		switch output.Name {
		case "item_ids":
			ids, err = rows[@ID@](output)
		case "scores":
			scores, err = rows[float32](output)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return ids, scores, nil
}

// rows cuts the data of an output into a slice for each user.
func rows[T any](output tensor) ([][]T, error) {
	var all []T
	if err := json.Unmarshal(output.Data, &all); err != nil {
		return nil, err
	}
	users, width := output.Shape[0], output.Shape[1]
	cut := make([][]T, users)
	for user := range cut {
		cut[user] = all[user*width : (user+1)*width]
	}
	return cut, nil
}

func main() {
	// Raw values by feature name; nil, or a name left out, is a missing value.
	first := map[string]any{}
@FIRST@
	second := map[string]any{}
@SECOND@
	inputs := map[string][]any{"context": {first, second}}
	// Filters, one for each user; an empty one takes nothing away.
	inputs["exclude"] = []any{@EXCLUDE@, []@ID@{}}
@ALLOW@	ids, scores, err := recommend(inputs)
	if err != nil {
		log.Fatal(err)
	}
	for user := range ids {
		fmt.Println(ids[user], scores[user])
	}
}
"""


def program(
    model: str,
    users: Sequence[Mapping[str, Any]],
    items: Sequence[int | str],
    allow: Mapping[str, Sequence[str]],
    id_type: str,
) -> str:
    """main.go for two users, ids to exclude, values to allow, which `model` takes; `id_type` is
    that of an item's id."""
    first, second = map(_assignments, users, ("first", "second"))
    excluded = f"[]{id_type}{{{', '.join(map(_literal, items))}}}"
    pad = "an empty id" if id_type == "string" else "an id of -1"
    made = _PROGRAM.replace("@FIRST@\n", first).replace("@SECOND@\n", second)
    allowed = ""
    if allow:
        ((name, values),) = allow.items()
        wanted = f"map[string][]string{{{_literal(name)}: {{{', '.join(map(_literal, values))}}}}}"
        allowed = f'\tinputs["allow"] = []any{{{wanted}, map[string]any{{}}}}\n'
    made = made.replace("@EXCLUDE@", excluded).replace("@ALLOW@", allowed)
    return made.replace("@MODEL@", model).replace("@ID@", id_type).replace("@PAD@", pad)


def _assignments(user: Mapping[str, Any], variable: str) -> str:
    return "".join(f"\t{variable}[{_literal(n)}] = {_literal(v)}\n" for n, v in user.items())


def _literal(value: Any) -> str:
    """JSON and Go write texts and numbers alike."""
    if value is None:
        return "nil"
    if isinstance(value, list):
        return f"[]string{{{', '.join(map(_literal, value))}}}"
    return json.dumps(value, ensure_ascii=False)

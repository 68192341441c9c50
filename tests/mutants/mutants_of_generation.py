"""Faults in the steps of generation."""

from __future__ import annotations

from mutant_fault import faults_of

ROOM = "xlnet_fast/hf/families/xlnet/generation"
STEPS = "hf/test_hf_generation_steps.py"
DRAFTS = "hf/test_hf_generation_drafts.py"
RECORDED = "hf/test_hf_generation_recorded.py"

FAULTS = [
    *faults_of(
        f"{ROOM}/model.py",
        STEPS,
        (
            "generation: the mask of the first tokens",
            "mask[:, -columns:]",
            "mask[:, :columns]",
        ),
        (
            "generation: a model that changed goes on with its keys",
            "if not state.parts.are_as_before():",
            "if False:",
        ),
        (
            "generation: steps where a gradient is recorded",
            "            or torch.is_grad_enabled()\n",
            "",
        ),
        (
            "generation: a user's memory keeps the rows that are read again",
            "layer[:-2] for layer in memory",
            "layer for layer in memory",
        ),
    ),
    *faults_of(
        f"{ROOM}/parts.py",
        STEPS,
        (
            "generation: a hook is not seen",
            "any(getattr(module, name) for name in _HOOKS)",
            "False",
        ),
        (
            "generation: values may change in place",
            "0 if t.is_inference() else t._version",
            "0",
        ),
    ),
    *faults_of(
        f"{ROOM}/state.py",
        STEPS,
        (
            "generation: the dummy is not remembered",
            "new = count + 1  # the dummy",
            "new = count  # the dummy",
        ),
        (
            "generation: an earlier state is continued where others wrote",
            "tip=ran.tip if end >= ran.end else None,",
            "tip=ran.slots.tip,",
        ),
        (
            "generation: a beam keeps the row before its first other token",
            "int(differs[targets].int().argmax(1).min()) - 1",
            "int(differs[targets].int().argmax(1).min())",
        ),
        (
            "generation: a beam keeps rows by the tokens that are remembered",
            "read=history[:, : history.shape[1] - (ran.end - ran.start + count) + kept],",
            "read=history[:, history.shape[1] - (ran.end - ran.start + count) + gone :"
            " history.shape[1] - (ran.end - ran.start + count) + kept],",
        ),
        (
            "generation: a text without memory is taken for another",
            "if read.shape == now.shape and torch.equal(read, now):",
            "if read.shape == now.shape:",
        ),
    ),
    *faults_of(
        f"{ROOM}/step.py",
        STEPS,
        (
            "generation: a causal row sees the token behind it",
            "hidden = (key > row)[None] if causal",
            "hidden = (key > row + 1)[None] if causal",
        ),
        (
            "generation: padding is seen by few rows",
            "(hidden | self.padding[:, None]) & (key != row)",
            "hidden & (key != row)",
        ),
        (
            "generation: padding is seen by a prompt's query row",
            "query = None if self.padding is None else self.padding[:, None]",
            "query = None",
        ),
        (
            "generation: slots are written to beyond their end",
            "self.end + count <= slots.capacity",
            "self.end + count <= slots.capacity + 1",
        ),
    ),
    *faults_of(
        f"{ROOM}/distances.py",
        STEPS,
        (
            "generation: new distances are one off",
            "self.__project(-self.near - 1, -near)",
            "self.__project(-self.near, 1 - near)",
        ),
    ),
    *faults_of(
        f"{ROOM}/ahead.py",
        DRAFTS,
        (
            "drafts: a step sees the newer copies of others",
            "newer = number != number.T",
            "newer = number < number.T",
        ),
        (
            "drafts: a causal older copy sees its newer one",
            "torch.ones_like(newer)",
            "newer",
        ),
        (
            "drafts: rows that are forgotten are seen",
            "(key > frozen + number) | (key < first.to(device)[:, None])",
            "key > frozen + number",
        ),
    ),
    *faults_of(
        f"{ROOM}/state.py",
        DRAFTS,
        (
            "drafts: a step ahead is taken for another token",
            "if ahead is None or ids.tolist() != [[self._newest, ahead.token]]:",
            "if ahead is None:",
        ),
    ),
    *faults_of(
        f"{ROOM}/recorded.py",
        RECORDED,
        (
            "recorded: rows that hold nothing are seen",
            "hidden = hidden | (key >= self.end + self.count)",
            "pass",
        ),
        (
            "recorded: the first step's place for all",
            "        self.end.fill_(ran.end)\n",
            "        self.end.fill_(ran.end if self.logits is None else self.end.item())\n",
        ),
        (
            "recorded: logits that the next step overwrites",
            "return self.logits.clone()",
            "return self.logits",
        ),
    ),
]

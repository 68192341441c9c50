"""Faults of pretraining and fine-tuning: who sees whom, memory, checkpoints, metrics, answers."""

from __future__ import annotations

from mutant_fault import faults_of

PRETRAINING = "xlnet_fast/train/pretraining"
FINETUNE = "xlnet_fast/train/finetune"
SHARED = "xlnet_fast/train/shared"

FAULTS = [
    *faults_of(
        f"{PRETRAINING}/permutation.py",
        "train/pretraining/test_train_permutation.py",
        (
            "permutation: a target sees itself",
            "np.where(targets, order, 0) + base + 1)",
            "np.where(targets, order + 1, 0) + base + 1)",
        ),
        (
            "permutation: a span one token too long",
            "if spans.whole_words else begin + units",
            "if spans.whole_words else begin + units + 1",
        ),
        (
            "permutation: the last span exceeds the goal",
            "        end = np.minimum(end, begin + left[active])\n",
            "",
        ),
        (
            "permutation: spans of all lengths alike",
            "chance = np.cumsum(1.0 / np.arange(1, spans.max_span + 1))",
            "chance = np.cumsum(np.ones(spans.max_span))",
        ),
        (
            "permutation: the base of the next part is one too low",
            "return base + 1 + blocks * perm_size",
            "return base + blocks * perm_size",
        ),
    ),
    *faults_of(
        f"{PRETRAINING}/streams.py",
        "train/pretraining/test_train_streams.py",
        (
            "streams: the row of a step goes on in another stream",
            "found: Ints = backward * self.texts + process * (own // 2) + row",
            "found: Ints = backward * self.texts + row * self.processes + process",
        ),
        (
            "streams: a step begins where the last sequence ended",
            "self.begin = step * self.shape.reuse_len",
            "self.begin = step * self.shape.pair_len",
        ),
        (
            "streams: backward rows read forwards",
            "place = np.where(self.backward[:, None], self.length - 1 - place, place)",
            "place = np.where(self.backward[:, None], place, place)",
        ),
        (
            "streams: the first part sees the second",
            "            base = next_base(base, end - begin, self.shape.perm_size)\n",
            "",
        ),
    ),
    *faults_of(
        f"{PRETRAINING}/text_streams.py",
        "train/pretraining/test_train_streams.py",
        (
            "streams: the same order of documents in each epoch",
            "np.random.default_rng([self.seed % 2**64, epoch]).permutation(count)",
            "np.random.default_rng([self.seed % 2**64]).permutation(count)",
        ),
    ),
    *faults_of(
        f"{PRETRAINING}/transfo_xl/streams.py",
        "train/pretraining/test_txl_streams.py",
        (
            "segments: the last token of a segment has no target",
            "ids = self.text.at(np.arange(begin, min(end + 1, len(self.corpus))))",
            "ids = self.text.at(np.arange(begin, end))",
        ),
        (
            "segments: the last one of an epoch is left out",
            "self.steps = -(-self.stream_len // seq_len)",
            "self.steps = self.stream_len // seq_len",
        ),
        (
            "segments: a row reads on in the next row's stream",
            "end = min(begin + self.seq_len, stream + self.stream_len)",
            "end = begin + self.seq_len",
        ),
    ),
    *faults_of(
        f"{PRETRAINING}/transfo_xl/trainer.py",
        "train/pretraining/test_txl_trainer.py",
        (
            "segments: their mean, whatever their lengths",
            "outputs.losses.float().sum(), (labels != IGNORED).sum().float()",
            "outputs.losses.float().mean(), outputs.losses.new_ones(())",
        ),
    ),
    *faults_of(
        f"{PRETRAINING}/transfo_xl/tokenizers.py",
        "train/pretraining/test_txl_text.py",
        (
            "segments: a tokenizer that puts <sep> and <cls> behind a text",
            '    pieces.post_processor = TemplateProcessing(single="$A", pair="$A $B")\n',
            "",
        ),
    ),
    *faults_of(
        f"{PRETRAINING}/collator.py",
        "train/pretraining/test_train_collator.py",
        (
            "collator: padding on the right",
            "real = np.arange(length)[None] >= (length - lengths)[:, None]",
            "real = np.arange(length)[None] < lengths[:, None]",
        ),
        (
            "collator: padding has segment 0",
            "_PADDING_SEGMENT = 3",
            "_PADDING_SEGMENT = 0",
        ),
        (
            "collator: no target in a short text",
            "wanted = np.maximum(1, np.round(lengths * share)).astype(np.int64)",
            "wanted = np.floor(lengths * share).astype(np.int64)",
        ),
    ),
    *faults_of(
        f"{PRETRAINING}/trainer.py",
        "train/pretraining/test_pretraining_trainer.py",
        (
            "pretraining: the loss in half precision",
            "logits.reshape(len(flat), -1).float(), flat,",
            "logits.reshape(len(flat), -1), flat,",
        ),
    ),
    *faults_of(
        f"{PRETRAINING}/memory_trainer.py",
        "train/pretraining/test_pretraining_trainer.py",
        (
            "pretraining: memory of the last epoch goes on",
            "self._memory, self._memory_epoch = None, epoch",
            "self._memory_epoch = epoch",
        ),
        (
            "pretraining: an evaluation begins with the training's memory",
            "self._eval_sums = None, torch.zeros(2)\n",
            "self._eval_sums = self._memory, torch.zeros(2)\n",
        ),
        (
            "pretraining: the loss of a batch is its own mean",
            "items = count if num_items_in_batch is None else num_items_in_batch",
            "items = count",
        ),
    ),
    *faults_of(
        f"{PRETRAINING}/memory_trainer.py",
        "train/pretraining/test_pretrain_run.py train/pretraining/test_pretraining_trainer.py",
        (
            "pretraining: a resumed run begins without memory",
            "self._memory = tuple(layer.to(self.args.device) for layer in layers)",
            "self._memory = None",
        ),
        (
            "pretraining: layers of the memory in the order of their names",
            "for name in sorted(file.keys(), key=int)]",
            "for name in sorted(file.keys(), reverse=True)]",
        ),
        select="resume or interrupt or stop or memory",
    ),
    *faults_of(
        f"{SHARED}/checkpoints.py",
        "train/shared/test_train_checkpoints.py",
        (
            "checkpoints: written under their own name",
            'with self._saving_into(run / f"{SAVING}{final.name}", final.name, run) as staging:',
            "with self._saving_into(run, final.name, run) as staging:",
        ),
        (
            "checkpoints: a replaced one is deleted before the new one is there",
            "        os.rename(final, old)\n    os.rename(written, final)\n",
            "        shutil.rmtree(final)\n    os.rename(written, final)\n",
        ),
        (
            "checkpoints: weights first",
            'key=lambda path: path.suffix == ".safetensors"):',
            'key=lambda path: path.suffix != ".safetensors"):',
        ),
        (
            "checkpoints: a full disk that shows late is not seen",
            "                os.fsync(file.fileno())\n        _flush_folder",
            "                file.fileno()\n        _flush_folder",
        ),
        (
            "checkpoints: a damaged one is resumed from",
            "            check_checkpoint(folder)\n        except ArgumentError as error:\n"
            '            warn(f"skipping',
            '            pass\n        except ArgumentError as error:\n            warn(f"skipping',
        ),
        select="damaged or leftovers or kill or full_disk or too_large or replace",
    ),
    *faults_of(
        f"{SHARED}/checkpoint_files.py",
        "train/shared/test_train_checkpoints.py",
        (
            "checkpoints: the optimizer may be missing",
            "            _check_zip(folder / name)\n    _check_random_states(folder)",
            "            _check_zip(folder / name)\n    return",
        ),
        select="damaged",
    ),
    *faults_of(
        f"{SHARED}/trainer.py",
        "train/shared/test_train_trainer.py",
        (
            "trainer: a save without a log",
            "        if self.control.should_save or saves_if_best:\n"
            "            self.control.should_log = True\n",
            "",
        ),
        (
            "trainer: a stop deletes the newest checkpoint",
            "best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, None",
            "best = self.state.best_model_checkpoint",
        ),
        (
            "trainer: signals stay caught after an error",
            "            self._stop.close()\n            self._progress.close()\n",
            "            self._progress.close()\n",
        ),
        select="resumed or stop or signal or error or arguments",
    ),
    *faults_of(
        f"{FINETUNE}/layerwise.py",
        "train/finetune/test_finetune_training.py",
        (
            "layerwise: the bottom layer has the highest rate",
            "return float(decay ** (n_layer - 1 - int(layer.group(1))))",
            "return float(decay ** int(layer.group(1)))",
        ),
        (
            "layerwise: biases decay",
            '"weight_decay": weight_decay if decayed else 0.0,',
            '"weight_decay": weight_decay,',
        ),
        select="rate",
    ),
    *faults_of(
        f"{FINETUNE}/metrics.py",
        "train/finetune/test_finetune_metrics.py",
        (
            "metrics: labels that are nowhere lower the mean",
            "present = np.union1d(gold, predicted)",
            "present = np.arange(max(gold.max(), predicted.max()) + 2)",
        ),
        (
            "metrics: an entity of another type counts",
            '("right", true & guess)):',
            '("right", {e for e in guess if e[1:] in {t[1:] for t in true}})):',
        ),
        (
            "metrics: articles count",
            'return " ".join(_ARTICLES.sub(" ", text).split())',
            'return " ".join(text.split())',
        ),
        (
            "metrics: the first gold answer counts",
            "max(answer_f1(guess, answer) for answer in real),",
            "answer_f1(guess, real[0]),",
        ),
    ),
    *faults_of(
        f"{FINETUNE}/spans.py",
        "train/finetune/test_finetune_question_answering.py",
        (
            "spans: a filled-up place is an answer",
            "        if i >= 0:\n            yield",
            "        if True:\n            yield",
        ),
        (
            "spans: no answer below the threshold",
            "none = null_scores is not None and null_scores[k] > threshold",
            "none = null_scores is not None and null_scores[k] < threshold",
        ),
    ),
    *faults_of(
        f"{FINETUNE}/question_answering.py",
        "train/finetune/test_finetune_question_answering.py",
        (
            "questions: padding is not taken off the positions",
            "((x - padding).clamp(min=-1) for x in (spans.starts, spans.ends))",
            "(spans.starts, spans.ends)",
        ),
        select="depend_on_the_batches",
    ),
    *faults_of(
        "xlnet_fast/answers.py",
        "test_answers.py",
        (
            "answers: an answer may end before it begins",
            "possible = ends >= starts",
            "possible = ends >= 0",
        ),
        (
            "answers: the beam read starts by ends",
            "shape = (len(starts), -1, starts.shape[2])",
            "shape = (len(starts), starts.shape[2], -1)",
        ),
        (
            "answers: what is not allowed is left among the best",
            "logits = logits.masked_fill(~flags, _NEVER)",
            "logits = logits.masked_fill(flags & ~flags, _NEVER)",
        ),
        (
            "answers: one token longer than the longest",
            "ends - starts < longest",
            "ends - starts <= longest",
        ),
    ),
    *faults_of(
        f"{SHARED}/tokenizers.py",
        "train/finetune/test_finetune_padding.py",
        (
            "tokenizers: the files say on which side is padded",
            'tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"',
            'tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side',
        ),
        select="one_by_one or is_saved",
    ),
    *faults_of(
        "xlnet_fast/train/shared/columns.py",
        "train/finetune/test_finetune_training.py",
        (
            "options: a column may be named twice",
            "given.count(word) > 1",
            "given.count(word) > 2",
        ),
    ),
    *faults_of(
        f"{FINETUNE}/options.py",
        "train/finetune/test_finetune_training.py",
        (
            "options: a threshold is ignored where none is read",
            "if kind != MULTI and self.threshold",
            "if kind == MULTI and self.threshold",
        ),
        select="can",
    ),
    *faults_of(
        f"{FINETUNE}/labels.py",
        "train/finetune/test_finetune_labels.py",
        (
            "labels: numbers with fractions are classes",
            "math.isfinite(number) and not number.is_integer()",
            "math.isnan(number)",
        ),
        (
            "labels: rows of zeros and ones are lists of names",
            "if found.count(name) > 1:",
            "if found.count(name) > len(found):",
        ),
    ),
    *faults_of(
        f"{FINETUNE}/texts.py",
        "train/finetune/test_finetune_labels.py",
        (
            "texts: a label of -100 is no label",
            'batch["labels"] = torch.zeros(len(features), dtype=torch.long)',
            'batch["labels"] = self.targets(features).long()',
        ),
        select="whatever_they_are",
    ),
    *faults_of(
        f"{FINETUNE}/task.py",
        "train/finetune/test_finetune_saved.py",
        (
            "task: a test takes its labels from a column that was not named",
            "optional += () if named_otherwise else (self.label_role,)",
            "optional += (self.label_role,)",
        ),
        (
            "task: the length of a run is saved with the tokenizer",
            "            forget_truncation(self.tokenizer)\n",
            "            pass\n",
        ),
        select="without_the_column or to_itself",
    ),
    *faults_of(
        f"{FINETUNE}/model.py",
        "train/finetune/test_finetune_saved.py",
        (
            "model: what is saved keeps memory",
            "config.use_mems_eval = False",
            "config.use_mems_eval = True",
        ),
        select="pipelines and plain",
    ),
    *faults_of(
        "xlnet_fast/checkpoint.py",
        "train/shared/test_train_hub.py",
        (
            "checkpoint: what is cached is asked of the network",
            'return {"local_files_only": True}',
            "return {}",
        ),
        select="cache",
    ),
]

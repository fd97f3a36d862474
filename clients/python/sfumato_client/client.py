"""`Client`: calls that block."""

from collections.abc import Generator, Mapping
from typing import Unpack

from sfumato_protos.v1 import gateway_pb2

from sfumato_client.comparison import ComparisonResult, SettingOptions, build_comparison
from sfumato_client.edits import Edits
from sfumato_client.families import Families
from sfumato_client.prompt_edits import EditPromptOptions, EditPromptResult, build_edit_prompt
from sfumato_client.rejoin import Rejoin
from sfumato_client.requests import GenerateOptions, build_request, without_steps
from sfumato_client.results import GenerateResult


class Client(Edits, Families):
    """Calls a gateway and blocks. A context manager; safe to share between threads."""

    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> GenerateResult:
        """Makes images.

        Raises:
            SfumatoError: refused, with field, limit and value, or failed.
            ValueError, TypeError, OSError: an option that cannot be, a file that cannot be read.
        """
        result = GenerateResult()
        for event in self.generate_events(prompt, **without_steps(options)):
            result.add(event)
        return result

    def generate_events(
        self, prompt: str, **options: Unpack[GenerateOptions]
    ) -> Generator[gateway_pb2.GenerateResponse]:
        """The events as they come. Closing the iterator ends the request, or what on_disconnect says.

        With a request_id a stream that is dropped is joined again; where the gateway forgot the request, it
        begins anew, with `accepted`.
        """
        return self.events_of(build_request(prompt, options))

    def events_of(self, request: gateway_pb2.GenerateRequest) -> Generator[gateway_pb2.GenerateResponse]:
        """As generate_events, of a message."""
        return self._events(self._gateway.Generate, Rejoin(request, self.timeout))

    def edit_prompt(
        self, prompt: str, target_prompt: str, **options: Unpack[EditPromptOptions]
    ) -> EditPromptResult:
        """Prompt-to-prompt: changes an image by changing its prompt. Raises as generate does."""
        result = EditPromptResult()
        for event in self.edit_prompt_events(prompt, target_prompt, **without_steps(options)):
            result.add(event)
        return result

    def edit_prompt_events(
        self, prompt: str, target_prompt: str, **options: Unpack[EditPromptOptions]
    ) -> Generator[gateway_pb2.EditPromptResponse]:
        """The events as they come; as generate_events."""
        request = build_edit_prompt(prompt, target_prompt, options)
        return self._events(self._gateway.EditPrompt, Rejoin(request, self.timeout))

    def compare(
        self, prompt: str, settings: Mapping[str, SettingOptions], **options: Unpack[GenerateOptions]
    ) -> ComparisonResult:
        """Makes the same images under several settings of guidance; raises as generate does.

        Args:
            settings: label to guidance options, and guidance_scale. 1 to 16.
        """
        result = ComparisonResult()
        for event in self.compare_events(prompt, settings, **without_steps(options)):
            result.add(event)
        return result

    def compare_events(
        self, prompt: str, settings: Mapping[str, SettingOptions], **options: Unpack[GenerateOptions]
    ) -> Generator[gateway_pb2.CompareResponse]:
        """The events as they come; as generate_events."""
        request = build_comparison(prompt, settings, options)
        return self._events(self._gateway.Compare, Rejoin(request, self.timeout))
